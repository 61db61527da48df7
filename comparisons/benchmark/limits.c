/* The same arithmetic in C: what a machine can do, one point after the other. */

#include <stddef.h>

/* Gradient descent on Σ (a + b·P3(c + d·x) − y)², by the steps' loss and four sums in one pass over the points. */
void fit(const float *x, const float *y, size_t points, size_t steps, float rate, float coefficients[4], float *losses)
{
    float a = coefficients[0], b = coefficients[1], c = coefficients[2], d = coefficients[3];
    for (size_t step = 0; step < steps; step++) {
        float loss = 0, to_a = 0, to_b = 0, to_c = 0, to_d = 0;
        for (size_t i = 0; i < points; i++) {
            float z = c + d * x[i];
            float value = z * (2.5f * z * z - 1.5f), slope = 7.5f * z * z - 1.5f;
            float residual = a + b * value - y[i], to_z = 2 * residual * b * slope;
            loss += residual * residual;
            to_a += 2 * residual;
            to_b += 2 * residual * value;
            to_c += to_z;
            to_d += to_z * x[i];
        }
        losses[step] = loss;
        a -= rate * to_a;
        b -= rate * to_b;
        c -= rate * to_c;
        d -= rate * to_d;
    }
    coefficients[0] = a, coefficients[1] = b, coefficients[2] = c, coefficients[3] = d;
}

/* P3(x), and then its vjp, each in one pass. */
void forward(const float *x, float *value, size_t points)
{
    for (size_t i = 0; i < points; i++)
        value[i] = x[i] * (2.5f * x[i] * x[i] - 1.5f);
}

void backward(const float *x, const float *cotangent, float *gradient, size_t points)
{
    for (size_t i = 0; i < points; i++)
        gradient[i] = cotangent[i] * (7.5f * x[i] * x[i] - 1.5f);
}
